"""What asking costs: prices, the ledger that holds the cap, and the bill."""
