"""The language of Modelyard: what can be asked for, what comes back, and how mistakes are told."""
