"""How well does a masked autoencoder fill in what it does not see?"""
