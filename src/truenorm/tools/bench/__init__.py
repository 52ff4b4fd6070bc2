"""`truenorm bench`: how fast the layers are, beside Keras', the framework's own, and memory."""
