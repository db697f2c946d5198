"""Many rows of pictures and questions into a folder of answers, which can be stopped and gone on with at any moment.

rows, sources, survey        the input: its records, its formats, a first pass that counts
answering                    one model, which answers chunks of rows
here, workers, on_ray        where models run: this process, several, Ray
ranges, parts, output        the folder: which rows are done, its files, what a run that was killed has left
crashes                      which rows a run was at when its process crashed
job                          all of that together
listener                     what a run tells while it goes on
"""
