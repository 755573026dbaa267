# awk -f splice.awk -v options=FILE PAGE: the page, with FILE between its two markers.
/^<!-- options -->$/ {
  print
  print ""
  while ((getline line < options) > 0) print line
  skipping = 1
}
/^<!-- end of options -->$/ { skipping = 0 }
!skipping { print }
