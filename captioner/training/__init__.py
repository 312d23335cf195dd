"""Training a decoder, without Ray.

``batches``        feature rows -> tensors
``objective``      a batch -> the loss that a step lowers: cross-entropy
``self_critical``  the same for the second stage: a reward for captions that the decoder draws
``learner``        decoder, optimizer, learning rate, moving average; one epoch
``progress``       what has been done, when it is over, checkpoints
"""
