"""Files: public files and their checksums, records, checkpoints, sets of images that do not fit into memory."""
