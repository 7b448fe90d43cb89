"""Sources: the selection of files, the reading of their headers, and the decryption of encrypted files."""
