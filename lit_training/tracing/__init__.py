"""What one real step of training did, operation by operation: recorded, measured, read."""
