"""The engine's code of one rank under a fake process group and fake tensors, at any world size on one machine."""
