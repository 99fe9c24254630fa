"""Tables of the paper, our numbers beside the published ones: data frames in, Markdown, LaTeX and CSV out."""
