"""Attacks on an erasure: can the concept be brought back by other words, by optimised prompts, or by retraining?"""
