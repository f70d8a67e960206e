"""`python -m tests.gpu_check`: fine-tuning on a real GPU."""
