"""Text: from files to documents, sentences, a vocabulary and ids."""
