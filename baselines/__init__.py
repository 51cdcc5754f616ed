"""Baselines: fine-tuning, joint, individual, EWC, replay; one file each, run through Avalanche."""
