"""Running any network: on whatever inputs it takes, in which mode, how fast, and what its own code repeats."""
