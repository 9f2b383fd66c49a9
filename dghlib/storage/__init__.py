"""Files: public ones and their sums, records, checkpoints, sets of images too large for memory."""
