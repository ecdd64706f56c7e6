"""The first stage of corpus preparation: documents out of files, with what could not be read as drops."""
