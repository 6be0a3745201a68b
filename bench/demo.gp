# Response time over time, one panel per fault (rows) and standby level (columns); yado-demo sets `directory` (its data) and
# `output`, and writes what differs between runs into directory/panels.
load directory.'/panels'

height = 260 * rows + 120
y_of(pixels) = 1 - pixels / (1.0 * height)
set terminal svg size 1260, height dynamic enhanced font 'Helvetica,13' background '#ffffff'
set output output
set encoding utf8

set style line 1 lc rgb '#1b6ca8' pt 7 ps 0.30   # GET
set style line 2 lc rgb '#e08a00' pt 5 ps 0.34   # POST
set style line 3 lc rgb '#c0143c' pt 2 ps 0.80 lw 1.6   # unknown outcome
set style line 4 lc rgb '#000000' pt 9 ps 0.90   # error
set style line 9 lc rgb '#e4e4e4' lw 0.8
set border 3 lc rgb '#555555'
set tics nomirror out textcolor rgb '#333333'
set grid xtics ytics ls 9
set logscale y
first_s = -0.5
top_ms = slowest_ms * 5  # room for the label
set xrange [first_s:last_s]
set yrange [1:top_ms]
step_s = last_s > 3 ? 1 : last_s > 1 ? 0.5 : 0.25
set xtics step_s
set xtics format '%g'

# In pixels of the page: margins that leave room for labels, and a strip above for title and key.
strip_top = 84.0 / height
strip_bottom = 34.0 / height
cell_h = (1.0 - strip_top - strip_bottom) / rows
cell_w = (1.0 - 0.075) / columns
file = directory.'/points'

set multiplot
set label 100 "Response time of a Django site whose host fails at 0 s" at screen 0.075, screen y_of(26) left font ',18'
set label 101 sprintf('open-loop clients; %d round%s on one picture; %s', rounds, rounds == 1 ? '' : 's', machine) \
  at screen 0.075, screen y_of(46) left font ',11' textcolor rgb '#666666' noenhanced
# gnuplot's own key would be too wide for one panel.
set label 102 'GET' at screen 0.081, screen y_of(70) left offset 0.8, -0.28 point ls 1 ps 0.7
set label 103 'POST' at screen 0.131, screen y_of(70) left offset 0.8, -0.28 point ls 2 ps 0.7
set label 104 'POST, outcome unknown' at screen 0.187, screen y_of(70) left offset 0.8, -0.28 point ls 3
set label 105 'error' at screen 0.361, screen y_of(70) left offset 0.8, -0.28 point ls 4
set arrow 102 from screen 0.420, screen y_of(70) to screen 0.440, screen y_of(70) nohead lc rgb '#c0143c' lw 1.5
set label 106 'fault' at screen 0.445, screen y_of(70) left
set arrow 103 from screen 0.495, screen y_of(70) to screen 0.520, screen y_of(70) nohead lc rgb '#2c8a4b' lw 1.5 dt 2
set label 107 'first answer of the new owner'.(rounds > 1 ? ' (the round with the median)' : '') at screen 0.525, screen y_of(70) left
unset key

do for [row = 0:rows - 1] {
  do for [column = 0:columns - 1] {
    n = row * columns + column
    set lmargin at screen 0.075 + column * cell_w
    set rmargin at screen 0.075 + (column + 1) * cell_w - 0.022
    set tmargin at screen 1 - strip_top - row * cell_h - 0.022
    set bmargin at screen 1 - strip_top - (row + 1) * cell_h + 0.048
    set label 1 value(sprintf('title_%d', n)) at graph 0.02, graph 1.045 left font ',14'
    unset ylabel
    unset xlabel
    if (column == 0) {
      set ylabel 'response time (ms)' offset 0.5, 0
      set ytics ('1' 1, '10' 10, '100' 100, '1000' 1000, '10 000' 10000, '100 000' 100000)
    } else {
      set ytics ('' 1, '' 10, '' 100, '' 1000, '' 10000, '' 100000)
    }
    if (row == rows - 1) { set xlabel 'request due, seconds after the fault' }
    recovery = value(sprintf('recovery_%d', n))
    set arrow 1 from first 0, graph 0 to first 0, graph 1 nohead lc rgb '#c0143c' lw 1.5
    set arrow 2 from first recovery, graph 0 to first recovery, graph 0.88 nohead lc rgb '#2c8a4b' lw 1.5 dt 2
    set label 3 'first answer after '.value(sprintf('answer_%d', n)) at graph 0.985, graph 0.93 right font ',12' textcolor rgb '#2c8a4b'
    plot file index n using 1:($3 == 0 ? $2 : NaN) with points ls 1, \
         file index n using 1:($3 == 1 ? $2 : NaN) with points ls 2, \
         file index n using 1:($3 == 2 ? $2 : NaN) with points ls 3, \
         file index n using 1:($3 == 3 ? $2 : NaN) with points ls 4
    do for [i = 100:107] { unset label i }
    unset arrow 102
    unset arrow 103
  }
}
unset multiplot
