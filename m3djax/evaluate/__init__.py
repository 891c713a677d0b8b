"""What a trained model is worth: evaluators and the report they feed."""
