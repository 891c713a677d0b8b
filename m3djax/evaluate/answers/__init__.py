"""What does the model answer when it is asked about volumes, and how much of it is right?"""
