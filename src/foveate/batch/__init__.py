"""Many rows of pictures and questions into a folder of answers, which can be stopped and gone on with at any moment.

rows        one model, which answers chunks of rows
job         an input, a crew of models and a folder together, and what crashed the last run
"""
