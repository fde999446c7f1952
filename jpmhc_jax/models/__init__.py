"""Networks around the connections: the recursive model (TRM), the decoder, the vision transformer, their layers."""
