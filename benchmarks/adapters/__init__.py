"""What pictures of their own cost: LoRAs."""
