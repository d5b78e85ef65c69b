"""Sources of records: tables, folders, shards, LMDB, and how they are split."""
