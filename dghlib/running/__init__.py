"""Changes to a running network: private copies, hooks, batch-norm statistics, faster convolutions, processes."""
