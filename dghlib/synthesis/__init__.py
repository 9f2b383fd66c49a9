"""What all methods share that learn from a network's batch norms and classes: generators, and fine-tuning with one."""
