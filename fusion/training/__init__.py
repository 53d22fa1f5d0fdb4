"""From a store to a trained run; nothing here can see the test rows before the end."""
