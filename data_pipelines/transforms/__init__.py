"""Steps that turn a record into an example of numpy arrays."""
