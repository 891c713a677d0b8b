"""3D medical vision-language models in JAX: training, evaluation, published weights."""
