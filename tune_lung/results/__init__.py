"""The ledger: a run's tables, their schema, one writer and one reader."""
