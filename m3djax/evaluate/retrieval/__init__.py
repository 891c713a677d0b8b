"""Which report belongs to this volume, and which volume to this report?"""
