"""HAProxy as the data plane: what it should do, what it does, and how the one becomes the other.

Pure: capabilities, names, model, desired, words, slots, render and its sections (`render_*`), replies, plan, outcome,
control (types only). Input and output: files, runtime, listeners, direct, process.
"""
