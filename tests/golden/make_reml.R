# Weights, offsets and REML for one Gaussian expert, by lme4 and nlme: Rscript tests/golden/make_reml.R, from the root of
# a clone.
suppressPackageStartupMessages({library(lme4); library(nlme); library(jsonlite)})

sleep <- read.csv("mixmoe/data/sleepstudy.csv", stringsAsFactors = FALSE)
sim <- read.csv("tests/golden/sim_unbalanced.csv", stringsAsFactors = FALSE)
orthodont <- read.csv("mixmoe/data/orthodont.csv", stringsAsFactors = FALSE)
# columns that test_reml.py makes in the same way: rows i = 0, 1, ...
add <- function(d, offset) {
  i <- seq_len(nrow(d)) - 1
  d$w <- 0.25 + (7 * i) %% 5
  d$off <- offset
  d
}
data <- list(sleepstudy = add(sleep, 3 * sleep$days^2), sim_unbalanced = add(sim, -0.5 * sim$x1),
             orthodont = add(orthodont, 0.1 * orthodont$age))

cases <- list(
  list("sleep", "sleepstudy", "reaction ~ days | re: (1 + days | subject)", reaction ~ days + (1 + days | subject)),
  list("sim", "sim_unbalanced", "y ~ time + x1 + z1 | re: (1 | id)", y ~ time + x1 + z1 + (1 | id)),
  list("sim_uncorrelated", "sim_unbalanced", "y ~ time + x1 | re: (1 + time || id)",
       y ~ time + x1 + (1 | id) + (0 + time | id)),
  list("orthodont", "orthodont", "distance ~ age * sex | re: (1 | subject)",
       distance ~ age * factor(sex) + (1 | subject))
)
control <- lmerControl(optimizer = "nloptwrap", calc.derivs = FALSE,
                       optCtrl = list(xtol_abs = 1e-12, ftol_abs = 1e-12, xtol_rel = 1e-12, maxeval = 20000))

lmer_case <- function(case, reml, weighted, shifted) {
  d <- data[[case[[2]]]]
  d$.w <- if (weighted) d$w else 1
  d$.off <- if (shifted) d$off else 0
  fit <- lmer(case[[4]], d, REML = reml, control = control, weights = .w, offset = .off)
  list(name = case[[1]], data = case[[2]], formula = case[[3]], method = if (reml) "reml" else "ml",
       weights = if (weighted) "w" else NULL, offset = if (shifted) "off" else NULL,
       loglik = as.numeric(logLik(fit)), beta = unname(fixef(fit)), se = unname(sqrt(diag(as.matrix(vcov(fit))))),
       sd = unname(unlist(lapply(VarCorr(fit), function(v) attr(v, "stddev")))), sigma = sigma(fit),
       fitted = unname(fitted(fit))[1:20], residual = unname(residuals(fit, "response"))[1:20])
}

grid <- expand.grid(case = seq_along(cases), reml = c(FALSE, TRUE), weighted = c(FALSE, TRUE), shifted = c(FALSE, TRUE))
grid <- grid[grid$reml | grid$weighted | grid$shifted, ]
by_lmer <- lapply(seq_len(nrow(grid)), function(i) with(grid[i, ], lmer_case(cases[[case]], reml, weighted, shifted)))

# correlated and unequal errors of rows of unequal weight: R = diag(1 / w)^(1/2) C diag(1 / w)^(1/2), by nlme
sharp <- lmeControl(maxIter = 500, msMaxIter = 500, niterEM = 50, msTol = 1e-12, tolerance = 1e-10, returnObject = TRUE)
lme_case <- function(name, set, formula, options, fixed, random, correlation, variances, method) {
  fit <- lme(fixed, data[[set]], random, correlation, variances, method = toupper(method), control = sharp)
  shape <- if (is.null(correlation)) NULL else unname(coef(fit$modelStruct$corStruct, unconstrained = FALSE))
  list(name = name, data = set, formula = formula, options = options, method = method, loglik = as.numeric(logLik(fit)),
       beta = unname(fixef(fit)), se = unname(sqrt(diag(vcov(fit)))), sigma = fit$sigma, correlation = shape)
}
by_lme <- unlist(lapply(c("ml", "reml"), function(method) list(
  lme_case("sim_car1", "sim_unbalanced", "y ~ time + x1 | re: (1 | id)", list(errors = "car1", time = "time"),
           y ~ time + x1, ~ 1 | id, corCAR1(0.2, ~ time | id), varFixed(~ I(1 / w)), method),
  lme_case("ortho_ar1", "orthodont", "distance ~ age * sex | re: (1 | subject)", list(errors = "ar1"),
           distance ~ age * factor(sex), ~ 1 | subject, corAR1(0.2, ~ 1 | subject), varFixed(~ I(1 / w)), method),
  lme_case("sleep_sigma", "sleepstudy", "reaction ~ days | re: (1 | subject) | sigma: days", list(errors = "iid"),
           reaction ~ days, ~ 1 | subject, NULL, varComb(varFixed(~ I(1 / w)), varExp(form = ~ days)), method)
)), recursive = FALSE)

versions <- list(R = R.version.string, lme4 = as.character(packageVersion("lme4")), nlme = as.character(packageVersion("nlme")))
write_json(list(versions = versions, lmer = by_lmer, lme = by_lme), "tests/golden/reml.json", digits = NA,
           auto_unbox = TRUE, pretty = TRUE, null = "null")
