# A penalised function beside random intercepts, one expert, binary responses and counts: Rscript tests/golden/make_functions.R,
# from the root of a clone. By mgcv (functions and effects at their joint mode, fixed effects too), and by lme4 with the
# penalised coefficients as random effects (the way of gamm4: joint Laplace approximation, fixed effects by maximum likelihood).
suppressPackageStartupMessages({library(mgcv); library(lme4); library(jsonlite)})

sim <- read.csv("tests/golden/sim_responses.csv", stringsAsFactors = FALSE)
# responses that test_mgcv.py makes in the same way
sim$bent <- as.integer(sim$share > 0.5 + 0.25 * sin(2 * sim$x))
sim$waved <- floor(sim$count * (1.5 + sin(2 * sim$x)))
sim$fid <- factor(sim$id)

run <- function(response, family) {
  formula <- as.formula(paste(response, "~ s(x, bs = 'ps', k = 10) + s(fid, bs = 're')"))
  m <- gam(formula, data = sim, family = family, method = "ML",
           control = gam.control(epsilon = 1e-12, newton = list(conv.tol = 1e-10)))
  capture.output(v <- gam.vcomp(m))
  v <- if (is.list(v)) v$vc else v
  at <- predict(m, sim, type = "lpmatrix")
  own <- !grepl("fid", colnames(at))
  rows <- seq(1, nrow(sim), by = 25)
  by_mgcv <- drop(at[, own] %*% coef(m)[own])[rows]

  smooth <- smoothCon(s(x, bs = "ps", k = 10), sim, absorb.cons = TRUE)[[1]]
  parts <- smooth2random(smooth, "", type = 2)
  Z <- parts$rand$Xr
  sim$line <- parts$Xf[, 1]
  sim$column <- factor(rep(seq_len(ncol(Z)), length.out = nrow(sim)))
  made <- glFormula(as.formula(paste(response, "~ line + (1 | fid) + (1 | column)")), data = sim, family = family)
  Gp <- made$reTrms$Gp
  where <- which(names(made$reTrms$cnms) == "column")
  own <- (Gp[where] + 1):Gp[where + 1]
  made$reTrms$Zt[own, ] <- t(Z)
  deviance <- do.call(mkGlmerDevfun, made)
  first <- optimizeGlmer(deviance)
  deviance <- updateGlmerDevfun(deviance, made$reTrms, nAGQ = 1)
  last <- optimizeGlmer(deviance, stage = 2, optimizer = "bobyqa", control = list(maxfun = 20000, rhoend = 1e-8))
  fit <- mkMerMod(environment(deviance), last, made$reTrms, fr = made$fr)
  by_lme4 <- drop(cbind(1, sim$line) %*% fixef(fit) + Z %*% environment(deviance)$pp$b(1)[own])[rows]
  list(response = response, family = family, rows = rows - 1,
       mgcv = list(curve = by_mgcv, sd = v[, 1][[2]], sd_function = v[, 1][[1]]),
       lme4 = list(curve = by_lme4, sd = attr(VarCorr(fit)$fid, "stddev")[[1]], loglik = as.numeric(logLik(fit))))
}

versions <- list(R = R.version.string, mgcv = as.character(packageVersion("mgcv")), lme4 = as.character(packageVersion("lme4")))
stored <- list(versions = versions, cases = list(run("bent", "binomial"), run("waved", "poisson")))
write(toJSON(stored, digits = 10, auto_unbox = TRUE, pretty = TRUE), "tests/golden/functions.json")
