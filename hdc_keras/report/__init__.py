"""The report of a run: one HTML file.

`job.py` gathers its content and `page.py` renders it with the templates in `templates/`. Each section has its file:

- Results: `result_tables.py`
- Classes, with the confusion matrix: `class_tables.py`
- Retrieval: `retrieval_gallery.py`
- Map, by t-SNE: `embedding_map.py`
- Training: `curves.py`, drawn by `charts.py`
- Views: `view_strips.py`
- Cost: `cost.py`

`shown_videos.py` chooses the videos, and `thumbnails.py` makes their animated thumbnails.
"""
