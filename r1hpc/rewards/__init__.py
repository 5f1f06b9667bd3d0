"""Rewards: from a response and a label to a number, graded in processes that can be killed."""
