"""Storage pools: one contract, one file per driver."""
