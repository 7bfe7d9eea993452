"""The verbs: each file is the story of one command."""
