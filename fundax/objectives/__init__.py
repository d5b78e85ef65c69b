"""What makes each method that method: init, forward and loss as pure functions."""
