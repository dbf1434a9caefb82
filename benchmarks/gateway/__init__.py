"""The gateway without workers: how much of a core a submit and a poll take, listeners, the queue's memory, batches."""
