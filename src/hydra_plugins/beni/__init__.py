"""What Hydra asks beni for: a launcher and a sweeper. Hydra looks for both in the namespace package ``hydra_plugins``
alone, and imports them with every command: the work is in ``beni.launch``, which is loaded when an arm is to run.
"""
