"""Sources: the selection of files, their headers, and decryption."""
