"""What training and evaluation share: clips and sounds, predicting and scoring, epochs, steps and checkpoints."""
