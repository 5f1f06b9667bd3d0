"""Prompts: the file, the chat template, the order of each epoch, and a cursor that resumes exactly."""
