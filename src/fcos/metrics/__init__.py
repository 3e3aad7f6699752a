"""Measuring detections: `coco` has the twelve COCO numbers, AP per class and the best score threshold."""
