"""Use a trained model: predict, explain, write reports and synthesize images."""
