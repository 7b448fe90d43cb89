"""Data movement: from a task to the files of its ranks, in one pass and bounded memory."""
