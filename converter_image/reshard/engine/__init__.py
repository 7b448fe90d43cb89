"""Bytes: from a job to the files of its ranks, in one pass and bounded memory."""
