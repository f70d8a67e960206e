"""What both stages share: trainer, checkpoints, callbacks, metrics, loggers, run folder."""
