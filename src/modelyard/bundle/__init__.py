"""The bundle: a trained model exported, proved, described and kept."""
