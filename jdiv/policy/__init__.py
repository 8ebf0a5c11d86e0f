"""Policy updates: exact on finite processes, and as losses of sampled tokens."""
