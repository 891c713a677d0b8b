"""Configs: the names of their classes, their JSON, and rules for earlier formats."""
