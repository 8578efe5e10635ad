"""DICOM: frames by their headers, regular stacks of them, and their pixels; the layout is in layouts/."""
