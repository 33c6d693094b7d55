"""The networks of the papers, as torch modules that know nothing of datasets or ROS."""
